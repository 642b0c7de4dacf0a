//! Ctrl-C and SIGTERM: the first asks for an orderly end, the second ends at once.

use std::process;

use tokio::sync::watch;

use crate::failure::{Exit, Failure};

/// Told when the user wants an end.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Starts to listen. Must be called within the runtime.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::new(Exit::Failed, "cannot listen for signals").caused_by(&error);
        let (sender, receiver) = watch::channel(false);
        #[cfg(unix)]
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(failed)?;
        #[cfg(unix)]
        let mut interrupt =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map_err(failed)?;
        #[cfg(not(unix))]
        let _ = failed;
        tokio::spawn(async move {
            loop {
                #[cfg(unix)]
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                #[cfg(not(unix))]
                if tokio::signal::ctrl_c().await.is_err() {
                    return;
                }
                if sender.send_replace(true) {
                    // Asked for a second time: whatever is slow to end, ends now.
                    process::exit(i32::from(Exit::Interrupted as u8));
                }
            }
        });
        Ok(Self(receiver))
    }

    #[cfg(test)]
    pub(crate) fn never() -> Self {
        let (sender, receiver) = watch::channel(false);
        std::mem::forget(sender);
        Self(receiver)
    }

    #[cfg(test)]
    pub(crate) fn now() -> Self {
        Self(watch::channel(true).1)
    }

    /// Becomes true when the user wants an end.
    pub(crate) fn receiver(&self) -> watch::Receiver<bool> {
        self.0.clone()
    }

    /// Waits until the user wants an end.
    pub(crate) async fn wait(&mut self) {
        if self.0.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
