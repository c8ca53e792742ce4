//! The process's capabilities (capabilities(7)).

use std::io::Write as _;

use caps::CapSet;

/// Puts in force what the process may have: the permitted capabilities become effective ones.
///
/// The program in the container image has its capabilities as file capabilities that are permitted and not effective. A kernel
/// refuses to start a program whose effective file capabilities it may not have: the endpoint would not start in a pod without
/// capabilities, where it answers by its socket.
///
/// To be called before threads are started: capabilities belong to a thread, and new ones inherit them.
pub fn raise() {
    let raised = caps::read(None, CapSet::Permitted).and_then(|permitted| {
        let effective = caps::read(None, CapSet::Effective)?;
        if permitted == effective { Ok(()) } else { caps::set(None, CapSet::Effective, &permitted) }
    });
    if let Err(error) = raised {
        // What lacks a capability says so later, and names it.
        let _ = writeln!(std::io::stderr(), "retry-endpoint: permitted capabilities stay without effect: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_permitted_becomes_effective() {
        // On a thread of its own: capabilities belong to the thread.
        let thread = std::thread::spawn(|| {
            let permitted = caps::read(None, CapSet::Permitted).expect("readable");
            caps::clear(None, CapSet::Effective).expect("its own");
            raise();
            assert_eq!(caps::read(None, CapSet::Effective).expect("readable"), permitted);
        });
        thread.join().expect("no panic");
    }
}
