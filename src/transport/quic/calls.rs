//! Calls: a stream each, a request one way, answers the other, either end free to give up.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{ReadError, RecvStream, SendStream, VarInt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::ending::{CALL_CANCELLED, Ending};
use super::link::{Messages, QuicLink};
use crate::transport::registry::Standing as _;
use crate::transport::wire::head;
use crate::transport::{CALL_ANSWERS_MAX, Call, CallError, MESSAGE_BYTES_MAX, REQUEST_BYTES_MAX};

/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

type Answers = mpsc::Receiver<Result<Bytes, CallError>>;

/// Sends `request`; its answers come out of the receiver. Waits while [`super::super::CALLS_PER_PEER_MAX`] are open.
pub(super) async fn ask(link: &Arc<QuicLink>, request: Bytes) -> Result<Answers, CallError> {
    if request.len() > REQUEST_BYTES_MAX {
        return Err(CallError::TooLarge { bytes: request.len() });
    }
    let permit = tokio::select! {
        permit = Arc::clone(&link.calls).acquire_owned() => permit.map_err(|_| broken(link, "it closes"))?,
        error = link.connection().closed() => return Err(broken(link, &Ending::of(&error).into_words())),
    };
    let (mut send, recv) = link.connection().open_bi().await.map_err(|error| broken(link, &error.to_string()))?;
    let mut chunks = [Bytes::copy_from_slice(&head(&request)), request];
    send.write_all_chunks(&mut chunks).await.map_err(|error| broken(link, &error.to_string()))?;
    let _ = send.finish();
    let (to_caller, answers) = mpsc::channel(CALL_ANSWERS_MAX);
    tokio::spawn(read_answers(Arc::clone(link), recv, to_caller, permit));
    Ok(answers)
}

async fn read_answers(
    link: Arc<QuicLink>,
    recv: RecvStream,
    to_caller: mpsc::Sender<Result<Bytes, CallError>>,
    _permit: OwnedSemaphorePermit,
) {
    let mut answers = Messages::new(recv, MESSAGE_BYTES_MAX);
    loop {
        let answer = tokio::select! {
            answer = answers.next() => answer,
            () = to_caller.closed() => return answers.stop(CALL_CANCELLED),
        };
        let answer = match answer {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) if answers.broken.is_none() && answers.is_between() => return,
            Ok(None) => Err(broken(&link, &why(answers.broken.take()))),
            Err(reason) => Err(broken(&link, &reason)),
        };
        let last = answer.is_err();
        if to_caller.send(answer).await.is_err() || last {
            return answers.stop(CALL_CANCELLED);
        }
    }
}

fn why(error: Option<ReadError>) -> String {
    match error {
        None => "an answer was cut short".to_owned(),
        Some(ReadError::ConnectionLost(error)) => Ending::of(&error).into_words(),
        Some(ReadError::Reset(_)) => "it gave the call up".to_owned(),
        Some(error) => error.to_string(),
    }
}

fn broken(link: &QuicLink, reason: &str) -> CallError {
    CallError::Broken(link.node().clone(), reason.to_owned())
}

/// Takes calls until the connection ends; QUIC's own limit bounds how many are open.
pub(super) async fn serve(link: Arc<QuicLink>, calls: mpsc::Sender<Call>) {
    let mut open = JoinSet::new();
    while let Ok((send, recv)) = link.connection().accept_bi().await {
        while open.try_join_next().is_some() {}
        open.spawn(answer(Arc::clone(&link), Answering { send, complete: false }, recv, calls.clone()));
    }
}

/// The stream of answers. Whatever ends it early, a panic too, must not look like its end.
struct Answering {
    send: SendStream,
    complete: bool,
}

impl Drop for Answering {
    fn drop(&mut self) {
        if !self.complete {
            let _ = self.send.reset(VarInt::from_u32(CALL_CANCELLED));
        }
    }
}

async fn answer(link: Arc<QuicLink>, mut stream: Answering, recv: RecvStream, calls: mpsc::Sender<Call>) {
    let Some(request) = read_request(recv).await else { return };
    let (answers, mut from_handler) = mpsc::channel(CALL_ANSWERS_MAX);
    let cancelled = stream.send.stopped();
    tokio::pin!(cancelled);
    tokio::select! {
        sent = calls.send(Call { node: link.node().clone(), request, answers }) => if sent.is_err() { return },
        _ = &mut cancelled => return,
    }
    loop {
        let answer = tokio::select! {
            answer = from_handler.recv() => answer,
            _ = &mut cancelled => return,
        };
        let Some(answer) = answer else { break };
        if answer.len() > MESSAGE_BYTES_MAX {
            tracing::error!(peer = %link.node(), bytes = answer.len(), "an answer is too large: call given up");
            return;
        }
        let mut chunks = [Bytes::copy_from_slice(&head(&answer)), answer];
        if stream.send.write_all_chunks(&mut chunks).await.is_err() {
            return;
        }
    }
    stream.complete = stream.send.finish().is_ok();
}

async fn read_request(recv: RecvStream) -> Option<Bytes> {
    let mut requests = Messages::new(recv, REQUEST_BYTES_MAX);
    timeout(REQUEST_TIMEOUT, requests.next()).await.ok()?.ok()?
}
