//! The device against a front end and a guest by hand: what well-behaved ones never do.

mod handover;
mod hostile;
mod messages;
mod resume;
mod truncation;
