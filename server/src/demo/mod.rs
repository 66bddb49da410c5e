//! `lockgate demo`: a whole cluster of this binary's processes on one machine, verifying clients, and slots that move.
//!
//! From the bottom: [`data`] is what is loaded, [`oracle`] judges what clients are told, [`tally`] counts what it finds,
//! [`load`] are the clients, [`probe`] measures gaps on moving slots, [`check`] compares everything at the end,
//! [`disk`] measures the disk alone, [`report`] is the outcome. None of these knows how nodes are started or how jobs run.

pub mod check;
pub mod data;
pub mod disk;
pub mod kills;
pub mod load;
pub mod moves;
pub mod nodes;
pub mod oracle;
pub mod probe;
pub mod report;
mod run;
pub mod tally;

pub use run::run;
