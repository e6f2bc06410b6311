//! `health`: for whoever asks often and shows the last line, such as a container's health check.

use std::time::Duration;

use clap::Args;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use outrigger::client;
use tokio::net::TcpStream;

use super::{Failure, output};

/// How long a node may take to say how it is. Shorter than what container runtimes leave a check.
const WITHIN: Duration = Duration::from_secs(3);
/// The most of a reason that is read from the admin port, in bytes.
const REASON_BYTES_MAX: usize = 4096;

/// Say whether a node serves, in one line: exit 0, or 69 with the reason
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger health                        can this node serve quorum operations?
  outrigger health || outrigger status    what is wrong, where something is
  outrigger health --admin 10.0.0.7:9464  is that one ready: does it also have
                                          what the others have?

The node has 3 s to answer.")]
pub(super) struct Health {
    /// Ask `/readyz` of this admin port, in place of the socket
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
}

impl Health {
    pub(super) async fn run(self, socket: client::Builder) -> Result<(), Failure> {
        let Some(admin) = self.admin else { return ask_socket(socket).await };
        match tokio::time::timeout(WITHIN, ask_admin(&admin)).await {
            Ok(Ok((StatusCode::OK, said))) => Ok(output::print(&format!("healthy: {said}\n"))?),
            Ok(Ok((status, said))) => Err(Failure::Unavailable(format!("{admin} answers {}: {said}", status.as_u16()))),
            Ok(Err(why)) => Err(Failure::Unavailable(format!("no node answers at the admin port {admin}: {why}"))),
            Err(_) => Err(Failure::Unavailable(format!("no answer from the admin port {admin} within {WITHIN:?}"))),
        }
    }
}

async fn ask_socket(socket: client::Builder) -> Result<(), Failure> {
    match socket.answer_within(WITHIN).build().health().await {
        Ok(client::Health::Ready) => Ok(output::print("healthy: this node serves quorum operations\n")?),
        Ok(client::Health::Unready(reason)) => Err(Failure::Unavailable(reason)),
        Err(error) if error.is_unavailable() => Err(error.into()),
        // Whatever else answers at the socket, it serves nobody.
        Err(error) => Err(Failure::Unavailable(error.to_string())),
    }
}

/// What `/readyz` answers, in one line.
async fn ask_admin(admin: &str) -> anyhow::Result<(StatusCode, String)> {
    let stream = TcpStream::connect(admin).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/readyz").header(header::HOST, admin).body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), REASON_BYTES_MAX).collect().await;
    connection.abort();
    let body = body.map_err(|why| anyhow::anyhow!("{why}"))?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).split_whitespace().collect::<Vec<_>>().join(" ")))
}
