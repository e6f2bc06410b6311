//! Calls: a stream each, a request one way, answers the other, either end free to give up.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::ending::{CALL_CANCELLED, Ending};
use super::link::{QuicLink, READ_BYTES};
use crate::transport::registry::Standing as _;
use crate::transport::wire::{Unpacker, head};
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
    mut recv: RecvStream,
    to_caller: mpsc::Sender<Result<Bytes, CallError>>,
    _permit: OwnedSemaphorePermit,
) {
    let mut unpacker = Unpacker::new(MESSAGE_BYTES_MAX);
    let trouble = loop {
        let read = tokio::select! {
            read = recv.read_chunk(READ_BYTES, true) => read,
            () = to_caller.closed() => {
                let _ = recv.stop(VarInt::from_u32(CALL_CANCELLED));
                return;
            }
        };
        match read {
            Ok(Some(chunk)) => unpacker.push(chunk.bytes),
            Ok(None) if unpacker.is_between() => return,
            Ok(None) => break "an answer was cut short".to_owned(),
            Err(quinn::ReadError::ConnectionLost(error)) => break Ending::of(&error).into_words(),
            Err(quinn::ReadError::Reset(_)) => break "it gave the call up".to_owned(),
            Err(error) => break error.to_string(),
        }
        loop {
            match unpacker.next() {
                Ok(Some(answer)) => {
                    if to_caller.send(Ok(answer)).await.is_err() {
                        let _ = recv.stop(VarInt::from_u32(CALL_CANCELLED));
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    let _ = recv.stop(VarInt::from_u32(CALL_CANCELLED));
                    let _ = to_caller.send(Err(broken(&link, &error.to_string()))).await;
                    return;
                }
            }
        }
    };
    let _ = to_caller.send(Err(broken(&link, &trouble))).await;
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

async fn read_request(mut recv: RecvStream) -> Option<Bytes> {
    let read = async {
        let mut unpacker = Unpacker::new(REQUEST_BYTES_MAX);
        while let Ok(Some(chunk)) = recv.read_chunk(READ_BYTES, true).await {
            unpacker.push(chunk.bytes);
            if let Some(request) = unpacker.next().ok()? {
                return Some(request);
            }
        }
        None
    };
    timeout(REQUEST_TIMEOUT, read).await.ok().flatten()
}
