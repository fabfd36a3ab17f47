//! peer_tungstenite PORT: an echo server on one thread, built on tokio-tungstenite.
#![forbid(unsafe_code)]

use futures_util::{SinkExt as _, StreamExt as _};
use mod_websocket_bench::peer;
use tokio::net::{TcpListener, TcpStream};

async fn converse(stream: TcpStream) {
    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}

fn main() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(peer::address()).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(converse(stream));
        }
    })
}
