//! Looking at data directories that no process uses: checking them, repairing them, and making backups of them.

pub(crate) mod load;
