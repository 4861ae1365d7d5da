//! What the terminal and the system ask of a running command.

use crate::failure::Failure;

/// Resolves when the command is asked to stop: Ctrl-C or SIGTERM. Asked from here on, also before it is awaited.
#[cfg(unix)]
pub(crate) fn stop() -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Resolves when the command is asked to stop: Ctrl-C.
#[cfg(not(unix))]
pub(crate) fn stop() -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    Ok(async move {
        // Where Ctrl-C cannot be listened to, it ends the process by itself.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// Asks to read the configuration again: SIGHUP. None is missed from here on.
#[cfg(unix)]
pub(crate) struct Hangups(tokio::signal::unix::Signal);

#[cfg(unix)]
impl Hangups {
    pub(crate) fn listen() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::hangup()).map(Self).map_err(Failure::failed)
    }

    pub(crate) async fn next(&mut self) -> Option<()> {
        self.0.recv().await
    }
}

/// Nothing can ask for it here.
#[cfg(not(unix))]
pub(crate) struct Hangups;

#[cfg(not(unix))]
impl Hangups {
    pub(crate) fn listen() -> Result<Self, Failure> {
        Ok(Self)
    }

    pub(crate) async fn next(&mut self) -> Option<()> {
        None
    }
}
