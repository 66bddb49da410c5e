//! The crate's tests over sockets: each runs on real cores and in the simulation.

mod divergence;
mod floors;
mod links;
mod resp;
mod streams;
mod support;
mod watermarks;
