//! Asynchronous events (Base 5.2.1): dword 0 of the completion of an event request.

use std::fmt;

/// What happened, and the log page whose reading allows the next event of its kind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AsynchronousEvent(pub u32);

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// An error that belongs to no command (type 0h).
    Error,
    /// The health changed: reliability, temperature, spare space (type 1h).
    Health,
    /// The list of namespaces, or one of them, changed (type 2h, information 00h).
    NamespacesChanged,
    /// Another notice (type 2h).
    Notice,
    /// Another type.
    Other,
}

impl AsynchronousEvent {
    /// What it is about.
    pub fn kind(self) -> EventKind {
        match (self.0 & 7, self.0 >> 8 & 0xff) {
            (0, _) => EventKind::Error,
            (1, _) => EventKind::Health,
            (2, 0) => EventKind::NamespacesChanged,
            (2, _) => EventKind::Notice,
            _ => EventKind::Other,
        }
    }

    /// The log page to read.
    pub fn log(self) -> u8 {
        (self.0 >> 16) as u8
    }
}

impl fmt::Debug for AsynchronousEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AsynchronousEvent({:?}, {:#x})", self.kind(), self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_say_what_they_are_about() {
        let health = AsynchronousEvent(0x0002_0101);
        assert_eq!((health.kind(), health.log()), (EventKind::Health, 2));
        assert_eq!(AsynchronousEvent(0x0004_0002).kind(), EventKind::NamespacesChanged);
        assert_eq!(AsynchronousEvent(7).kind(), EventKind::Other);
    }
}
