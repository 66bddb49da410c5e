//! The runtime's tests from outside, in one program.

mod scenarios;
mod sim;
mod sim_clock;
mod sim_disk;
mod sim_history;
mod sim_net;
mod sim_process;
