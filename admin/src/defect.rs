//! Panics that cost an answer and not the program: work behind a guard, whose panic is its outcome.

use std::{
    any::Any,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

/// What a panic leaves.
pub type Panic = Box<dyn Any + Send>;

/// Runs what must not take others with it. What `work` leaves halfway is the caller's to throw away.
///
/// # Errors
/// The panic.
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(work))
}

/// The same for what waits. After a panic the future is not polled again.
///
/// # Errors
/// The panic.
pub async fn outlived<T>(work: impl Future<Output = T>) -> Result<T, Panic> {
    let mut work = pin!(work);
    poll_fn(|cx| match guarded(|| work.as_mut().poll(cx)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// The words of a panic.
#[must_use]
pub fn words(panic: &Panic) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hook is one of the whole process: tests that run beside this one keep theirs.
    #[test]
    fn the_words_of_a_panic_are_kept() {
        let one = guarded(|| panic!("plain")).unwrap_err();
        let two = guarded(|| panic!("with {}", 2)).unwrap_err();
        let three = guarded(|| std::panic::panic_any(3)).unwrap_err();
        assert_eq!([&one, &two, &three].map(words), ["plain", "with 2", "without a word"]);
    }

    #[tokio::test]
    async fn a_panic_after_a_wait_is_an_outcome_too() {
        assert_eq!(outlived(async { 1 }).await.unwrap(), 1);
        let late = async {
            tokio::task::yield_now().await;
            panic!("late")
        };
        let panic = outlived(late).await.unwrap_err();
        assert_eq!(words(&panic), "late");
    }
}
