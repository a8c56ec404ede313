//! How busy a runtime is, in percent, looked at no more often than it takes to matter.

use std::{
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::HeaderValue;
use tokio::{runtime::Handle, time::Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Utilisation {
    last: Mutex<Option<(Instant, Duration)>>,
    percent: AtomicUsize,
}

impl Utilisation {
    /// The busy share of the runtime's workers at the last look.
    pub(crate) fn percent(&self, runtime: &Handle) -> usize {
        // Where another thread looks just now, what it found before is good enough.
        if let Ok(mut last) = self.last.try_lock() {
            let now = Instant::now();
            if last.is_none_or(|(at, _)| now.saturating_duration_since(at) >= LOOK) {
                let metrics = runtime.metrics();
                let workers = metrics.num_workers();
                let busy: Duration = (0..workers).map(|n| metrics.worker_total_busy_duration(n)).sum();
                if let Some((at, before)) = *last {
                    let lived = now.saturating_duration_since(at) * u32::try_from(workers).unwrap_or(1);
                    self.percent.store(share(busy.saturating_sub(before), lived), Relaxed);
                }
                *last = Some((now, busy));
            }
        }
        self.percent.load(Relaxed)
    }
}

fn share(busy: Duration, lived: Duration) -> usize {
    let percent = busy.as_nanos() * 100 / lived.as_nanos().max(1);
    usize::try_from(percent).unwrap_or(100).min(100)
}

/// `0.00` to `1.00`.
pub(crate) fn header(percent: usize) -> HeaderValue {
    static VALUES: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| {
        let text = |percent: usize| format!("{}.{:02}", percent / 100, percent % 100);
        (0..=100).filter_map(|percent| HeaderValue::try_from(text(percent)).ok()).collect()
    });
    VALUES.get(percent.min(100)).cloned().unwrap_or(HeaderValue::from_static("1.00"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_two_digits_of_one() {
        let texts = [0, 7, 50, 100, 250].map(|percent| header(percent).to_str().unwrap().to_owned());
        assert_eq!(texts, ["0.00", "0.07", "0.50", "1.00", "1.00"]);
        let second = Duration::from_secs(1);
        assert_eq!(
            [share(second / 4, second), share(second, second / 2), share(second, Duration::ZERO)],
            [25, 100, 100]
        );
    }
}
