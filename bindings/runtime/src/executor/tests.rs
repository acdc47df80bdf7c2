use super::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

struct Virtual(Cell<u64>);
impl Clock for Virtual {
    fn now(&self) -> Moment {
        Moment(self.0.get())
    }
    fn unix_seconds(&self) -> u64 {
        0
    }
}

fn executor() -> (Rc<Virtual>, Executor) {
    let clock = Rc::new(Virtual(Cell::new(0)));
    (clock.clone(), Executor::new(clock, Arc::new(NoDoorbell)))
}

#[test]
fn timers_fire_in_order_and_only_when_due() {
    let (clock, executor) = executor();
    let log = Rc::new(RefCell::new(Vec::new()));
    for (index, wait) in [30u64, 10, 20, 10].into_iter().enumerate() {
        let (log, inner) = (Rc::clone(&log), executor.clone());
        executor.spawn(Priority::Foreground, async move {
            inner.sleep(Duration::from_nanos(wait)).await;
            log.borrow_mut().push(index);
        });
    }
    executor.run_until_idle();
    assert!(log.borrow().is_empty());
    while let Some(at) = executor.next_timer() {
        clock.0.set(at.0);
        executor.run_until_idle();
    }
    assert_eq!(*log.borrow(), [1, 3, 2, 0]);
}

#[test]
fn a_wake_from_another_thread_rings_the_doorbell() {
    struct Bell(AtomicBool);
    impl Doorbell for Bell {
        fn ring(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let bell = Arc::new(Bell(AtomicBool::new(false)));
    let executor = Executor::new(Rc::new(Virtual(Cell::new(0))), bell.clone());
    let shared: Arc<Mutex<(bool, Option<Waker>)>> = Arc::default();
    let task = Arc::clone(&shared);
    executor.spawn(
        Priority::Background,
        std::future::poll_fn(move |context| {
            let mut state = task.lock().unwrap();
            state.1 = Some(context.waker().clone());
            if state.0 { Poll::Ready(()) } else { Poll::Pending }
        }),
    );
    executor.run_until_idle();
    assert!(!bell.0.load(Ordering::SeqCst));
    let other = Arc::clone(&shared);
    std::thread::spawn(move || {
        let mut state = other.lock().unwrap();
        state.0 = true;
        state.1.take().unwrap().wake();
    })
    .join()
    .unwrap();
    assert!(bell.0.load(Ordering::SeqCst) && executor.woken());
    assert!(executor.run_until_idle());
}

#[test]
fn timeout_gives_up_and_yield_lets_others_run() {
    let (clock, executor) = executor();
    let order = Rc::new(RefCell::new(String::new()));
    let (inner, log) = (executor.clone(), Rc::clone(&order));
    executor.spawn(Priority::Foreground, async move {
        assert_eq!(
            inner.timeout(Duration::from_nanos(5), std::future::pending::<()>()).await,
            None
        );
        log.borrow_mut().push('t');
    });
    let (inner, log) = (executor.clone(), Rc::clone(&order));
    executor.spawn(Priority::Foreground, async move {
        log.borrow_mut().push('a');
        inner.yield_now().await;
        log.borrow_mut().push('c');
    });
    let log = Rc::clone(&order);
    executor.spawn(Priority::Foreground, async move { log.borrow_mut().push('b') });
    executor.run_until_idle();
    clock.0.set(5);
    executor.run_until_idle();
    assert_eq!(*order.borrow(), "abct");
}
