//! Known bugs, kept by name: the simulator turns one on to show that its oracles catch it.
//!
//! A place in the code asks [`mutation!`](crate::mutation) whether its bug is on. Without the feature `mutations` the
//! answer is a constant `false`, and the bug is compiled away. With it, the answer is the thread's: a simulation is one
//! thread, so that simulations beside it are not touched, and real cores never are.

/// Whether the named bug is to be committed here. Constant `false` without the feature `mutations`.
#[macro_export]
macro_rules! mutation {
    ($name:literal) => {
        $crate::mutations::is_active($name)
    };
}

/// Whether this build has the known bugs in it.
pub const COMPILED_IN: bool = cfg!(feature = "mutations");

#[cfg(feature = "mutations")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}

/// Turns one bug on for simulations of this thread, or all of them off. Panics when it is not [`COMPILED_IN`].
pub fn activate(name: Option<&'static str>) {
    #[cfg(feature = "mutations")]
    ACTIVE.set(name);
    assert!(COMPILED_IN || name.is_none(), "this build has no known bugs in it: {name:?}");
}

/// See [`mutation!`](crate::mutation).
#[cfg(feature = "mutations")]
pub fn is_active(name: &str) -> bool {
    ACTIVE.get() == Some(name)
}

/// See [`mutation!`](crate::mutation).
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub const fn is_active(_name: &str) -> bool {
    false
}
