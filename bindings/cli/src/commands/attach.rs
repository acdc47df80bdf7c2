//! How a guest gets a vdisk: arguments for QEMU, XML for libvirt.
//!
//! The engine maps the guest's memory, so that must be shared; `reconnect` lets the guest outlive a
//! restart of the engine.

use cleave_control::size::format_size;

/// What is attached, and to what kind of guest.
pub struct Guest<'a> {
    /// The vdisk.
    pub name: &'a str,
    /// Where it is served.
    pub socket: &'a str,
    /// Queues.
    pub queues: u16,
    /// The guest's memory, bytes.
    pub memory: u64,
}

/// Both, with comments.
pub fn text(guest: &Guest<'_>) -> String {
    format!(
        "# QEMU 7.2 or later. The first two lines replace -m and are needed once for each guest.\n{}\n\
         \n<!-- libvirt: inside <domain> once, with the guest's own <memory> -->\n{}\n\
         <!-- libvirt: inside <devices> -->\n{}",
        qemu(guest).join(" \\\n"),
        MEMORY_XML,
        disk_xml(guest)
    )
}

fn qemu(guest: &Guest<'_>) -> [String; 4] {
    let Guest { name, queues, .. } = guest;
    let memory = format_size(guest.memory);
    // A comma separates QEMU's options; two stand for one.
    let socket = shell(&guest.socket.replace(',', ",,"));
    [
        format!("-m {memory} -object memory-backend-memfd,id=cleave-memory,size={memory},share=on"),
        "-machine q35,memory-backend=cleave-memory".to_owned(),
        format!("-chardev socket,id=cleave-{name},path={socket},reconnect=1"),
        format!(
            "-device vhost-user-blk-pci,id=disk-{name},chardev=cleave-{name},num-queues={queues}"
        ),
    ]
}

const MEMORY_XML: &str = "<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
";

fn disk_xml(guest: &Guest<'_>) -> String {
    let socket = xml(guest.socket);
    let queues = guest.queues;
    format!(
        "<disk type='vhostuser' device='disk'>
  <driver name='qemu' type='raw' queues='{queues}'/>
  <source type='unix' path='{socket}'>
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <target dev='vda' bus='virtio'/>
</disk>
"
    )
}

fn shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-,+:@%=".contains(c);
    if text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vdisk_is_described_for_both() {
        let guest =
            Guest { name: "data", socket: "/d/vhost/data.sock", queues: 4, memory: 2 << 30 };
        let text = text(&guest);
        for part in [
            "size=2G,share=on",
            "path=/d/vhost/data.sock,reconnect=1",
            "vhost-user-blk-pci,id=disk-data,chardev=cleave-data,num-queues=4",
            "<disk type='vhostuser'",
            "path='/d/vhost/data.sock'",
            "queues='4'",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn strange_paths_are_quoted() {
        assert_eq!(shell("/a b/it's"), "'/a b/it'\\''s'");
        assert_eq!(xml("/a<b&'c"), "/a&lt;b&amp;&apos;c");
        let guest = Guest { name: "a", socket: "/x,y z", queues: 1, memory: 1 << 30 };
        assert!(qemu(&guest)[2].contains("path='/x,,y z',reconnect=1"));
    }
}
