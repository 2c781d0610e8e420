//! Paths that take less than the client sends.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{Result, ensure};
use redirector_ebpf::reason::Reason;
use xtask::lab::Topology;
use xtask::traffic::{ECHO_PORT, HTTP_PORT, upload};

use crate::scene::{PATIENCE, Scene, every_kind, pool_of, targets, wait_until};

#[test]
fn clients_learn_what_a_tunnel_takes() -> Result<()> {
    let topology = Topology { mtu: 1500, ..Topology::for_test("pmtu") };
    let config = every_kind(&topology, &["ipip", "gue"]);
    let scene = Scene::up(&topology, config)?;
    let body: String =
        (0_u32..).flat_map(|number| format!("{number:08x}").into_bytes()).take(1 << 20).map(char::from).collect();
    scene.lab.client().run(|| -> Result<()> {
        for target in targets(&scene.config, HTTP_PORT) {
            let backend = upload(target, &body, PATIENCE)?;
            ensure!(backend.starts_with('b'), "{target} was served by {backend}");
        }
        Ok(())
    })??;
    let told: u64 = scene.lab.nodes().iter().map(|node| scene.count(node, Reason::TooBigSent)).sum::<Result<_>>()?;
    ensure!(told > 0, "nobody had to be told");
    every_entry_tells(&scene)
}

/// Each node in turn is where all flows enter: some have their owner elsewhere, and the answer must still come.
fn every_entry_tells(scene: &Scene) -> Result<()> {
    for node in scene.lab.nodes() {
        for target in targets(&scene.config, ECHO_PORT) {
            scene.lab.steer(&target.ip().to_string(), &[&node])?;
        }
        scene.lab.client().run(|| -> Result<()> {
            for target in targets(&scene.config, ECHO_PORT) {
                // As long as the link takes, behind the headers of IP and UDP.
                let datagram = vec![b'x'; if target.is_ipv4() { 1472 } else { 1452 }];
                // As many flows as make it all but certain that one is owned elsewhere.
                for _ in 0..8 {
                    let socket = UdpSocket::bind((if target.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
                    probe(&socket, target.ip())?;
                    socket.connect(target)?;
                    let what = format!("{node} tells what {} takes", pool_of(&scene.config, target.ip()));
                    wait_until(&what, || {
                        let told = socket.send(&datagram).err();
                        Ok(told.is_some_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE)))
                    })?;
                }
            }
            Ok(())
        })??;
    }
    Ok(())
}

/// Has a socket send what the link takes, whatever was said of the path before, and hear what is said of it now.
fn probe(socket: &UdpSocket, to: IpAddr) -> Result<()> {
    let (level, option) = match to {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    };
    let probe: libc::c_int = 3;
    // SAFETY: the option's value outlives the call, and its size is given.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const probe).cast(), size_of_val(&probe) as u32)
    };
    ensure!(set == 0, "{}", std::io::Error::last_os_error());
    Ok(())
}
