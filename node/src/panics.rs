//! Panics become errors that say where they happened.
//!
//! The place of a panic is known to the panic hook only, its payload to the catcher only. The hook
//! leaves the place in a thread-local that the catcher on the same thread picks up.

use std::{
    any::Any,
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Once,
    task::{Context, Poll},
};

use wardkeep_proto::{
    Error,
    error::{Bug, Frames},
};

/// Where a panic happened: file, line, stack.
type Place = (String, u32, Frames);

thread_local! {
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// Makes panics quiet (their story is told once, by the error made of them) for threads that are
/// within a ward, and leaves every other panic to the hook that was there before.
pub(crate) fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !INSIDE.with(std::cell::Cell::get) {
                return before(info);
            }
            let place = info.location().map(|at| (at.file().to_owned(), at.line(), Frames::capture()));
            PLACE.with(|cell| {
                if let Ok(mut cell) = cell.try_borrow_mut() {
                    *cell = place;
                }
            });
        }));
    });
}

thread_local! {
    static INSIDE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs code of a ward: a panic in it is not printed, because whoever catches it will tell.
pub(crate) fn inside<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            INSIDE.with(|inside| inside.set(self.0));
        }
    }
    let _restore = Restore(INSIDE.with(|inside| inside.replace(true)));
    work()
}

/// The malformed error that stands for a panic caught on this thread just now.
pub(crate) fn error(payload: &(dyn Any + Send)) -> Error {
    let message = payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = PLACE.with(|cell| cell.try_borrow_mut().ok().and_then(|mut place| place.take()));
    match place {
        Some((file, line, frames)) => Bug::panicked_at(message, &file, line, frames),
        None => Bug::panicked(message),
    }
}

/// Runs a piece of a ward's code now; a panic in it becomes an error.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Error> {
    inside(|| catch_unwind(AssertUnwindSafe(work))).map_err(|payload| error(&*payload))
}

/// Drops something of a ward's; a panic in its `Drop` is logged, and goes no further.
pub(crate) fn discard<T>(thing: T) {
    if let Err(panic) = contain(|| drop(thing)) {
        panic.log();
    }
}

pin_project_lite::pin_project! {
    /// A future of a ward's code: a panic in it becomes an error. So does one while it is dropped, be it
    /// because it is no longer wanted or because it panicked before.
    pub(crate) struct Contained<F> {
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Contained<F> {
        fn drop(this: Pin<&mut Self>) {
            this.discard();
        }
    }
}

impl<F> Contained<F> {
    pub(crate) fn new(future: F) -> Self {
        Self { future: Some(future) }
    }

    fn discard(self: Pin<&mut Self>) {
        let mut future = self.project().future;
        if future.is_some()
            && let Err(panic) = contain(|| future.set(None))
        {
            panic.log();
        }
    }
}

impl<F: Future> Future for Contained<F> {
    type Output = Result<F::Output, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = self.as_mut().project().future.as_pin_mut() else { return Poll::Pending };
        let polled = contain(|| future.poll(cx));
        if !matches!(polled, Ok(Poll::Pending)) {
            self.discard();
        }
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_drop_goes_no_further_even_while_another_panic_unwinds() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("in drop");
            }
        }
        install_hook();
        let bomb = Bomb;
        drop(Contained::new(async move {
            let _bomb = bomb;
            std::future::pending::<()>().await;
        }));
        struct Holder(Option<Bomb>);
        impl Drop for Holder {
            fn drop(&mut self) {
                discard(self.0.take());
            }
        }
        let caught = contain(|| {
            let _holder = Holder(Some(Bomb));
            panic!("first");
        });
        assert_eq!(caught.map(|_: ()| ()).unwrap_err().what(), "panicked: first");
    }

    #[test]
    fn a_caught_panic_says_where_it_happened() {
        install_hook();
        let caught = std::panic::catch_unwind(|| inside(|| panic!("boom {}", 7))).unwrap_err();
        let error = error(&*caught);
        assert_eq!(error.what(), "panicked: boom 7");
        let site = &error.as_proto().hops[0].sites[0];
        assert_eq!(site.file, "node/src/panics.rs");
        assert!(error.is_malformed());
    }
}
