//! The simulator's tests from outside, in one program.

mod command_line;
mod compactions;
mod enumeration;
mod histories;
mod known_bugs;
mod partitions;
mod rules;
