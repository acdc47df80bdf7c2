//! Searching a model through.

use stateright::{Checker, Expectation, HasDiscoveries, Model};
use std::fmt::Debug;
use std::hash::Hash;

/// No property that does not hold.
pub const NONE: Vec<&str> = Vec::new();

/// Every state of a model; gives the names of properties that do not hold, with the shortest way there printed.
/// When all hold, everything that must be possible was seen, too.
pub fn broken<M>(name: &str, model: M) -> Vec<&'static str>
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let checker = model.checker().threads(2);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!("{name}: {} states", checker.unique_state_count());
    let (mut broken, mut unseen) = (Vec::new(), Vec::new());
    let discoveries = checker.discoveries();
    for property in checker.model().properties() {
        let path = discoveries.get(property.name).cloned();
        match (property.expectation, path) {
            (Expectation::Always, Some(path)) => {
                println!("{}: {:?}", property.name, path.into_actions());
                broken.push(property.name);
            }
            (Expectation::Sometimes, None) => unseen.push(property.name),
            _ => {}
        }
    }
    if broken.is_empty() {
        assert!(checker.is_done(), "the bounds are searched through");
        assert_eq!(unseen, NONE, "the bounds are too narrow to see");
    }
    broken
}
