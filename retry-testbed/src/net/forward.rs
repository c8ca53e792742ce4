//! The way from a program of this host, a browser for one, to a TCP server that listens inside a network namespace.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::net::netns::Netns;

/// Forwards connections to 127.0.0.1, to the server's port where it is free, to `server` in the namespace, until the process
/// ends. Returns the address on this host.
///
/// # Errors
/// No port is free, or no file descriptor.
pub fn to_namespace(ns: &Netns, server: SocketAddr) -> Result<SocketAddr> {
    let inside = Arc::new(ns.handle()?);
    let at = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = at(server.port()).or_else(|_| at(0)).context("listen on 127.0.0.1")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let inside = Arc::clone(&inside);
            thread::spawn(move || {
                // The browser sees a connection that ends, as from a server that is not there.
                if let Err(error) = forward(&client, &inside, server) {
                    eprintln!("forward a connection: {error:#}");
                }
            });
        }
    });
    Ok(address)
}

/// Copies in both directions until both have ended. The calling thread is in the namespace afterwards.
fn forward(client: &TcpStream, inside: &File, server: SocketAddr) -> Result<()> {
    setns(inside.as_fd(), CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
    let server = TcpStream::connect(server).with_context(|| format!("connect to {server}"))?;
    thread::scope(|scope| {
        scope.spawn(|| pass_on(client, &server));
        pass_on(&server, client);
    });
    Ok(())
}

/// A side that closes early ends the copy, which is no error of the demo's.
fn pass_on(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
