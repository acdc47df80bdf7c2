//! Both sides together, and each against one that misbehaves.

use super::*;
use crate::server::ControlServer;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::mpsc;

const LONG: Duration = Duration::from_secs(60);

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    (directory, path)
}

fn handler(request: Request) -> Response {
    match request {
        Request::DeleteVdisk { name } => {
            Response::error(format!("vdisk {name} is attached\nfor now"))
        }
        Request::CreateVdisk { name, size, encrypted, .. } => {
            Response::Ok(Reply::Vdisk(VdiskEntry {
                name,
                size,
                encrypted: encrypted.unwrap_or(false),
                ..VdiskEntry::default()
            }))
        }
        Request::ListVdisks {} => {
            let vdisks = (0..10_000_u64)
                .map(|id| VdiskEntry { id, name: format!("vdisk\n{id}"), ..VdiskEntry::default() })
                .collect();
            Response::Ok(Reply::Vdisks { vdisks })
        }
        _ => Response::Ok(Reply::Done {}),
    }
}

#[test]
fn requests_are_answered() {
    let (_directory, path) = place();
    let missing = call(&path, &Request::Status {}, LONG).unwrap_err();
    assert!(matches!(missing, CallError::NotRunning(_)), "{missing}");
    let server = ControlServer::start(&path, handler).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(call(&path, &Request::Stop {}, LONG).unwrap(), Reply::Done {});
    let create = Request::CreateVdisk {
        name: "a".to_owned(),
        size: 1 << 30,
        encrypted: Some(true),
        shares: None,
    };
    let Reply::Vdisk(vdisk) = call(&path, &create, LONG).unwrap() else { panic!("no vdisk") };
    assert_eq!((vdisk.name.as_str(), vdisk.size, vdisk.encrypted), ("a", 1 << 30, true));
    let refused = call(&path, &Request::DeleteVdisk { name: "a".to_owned() }, LONG).unwrap_err();
    assert_eq!(refused.to_string(), "vdisk a is attached for now");
    // A long answer, with line ends within its strings.
    let Reply::Vdisks { vdisks } = call(&path, &Request::ListVdisks {}, LONG).unwrap() else {
        panic!("no list")
    };
    assert_eq!((vdisks.len(), vdisks[9999].name.as_str()), (10_000, "vdisk\n9999"));
    drop(server);
    assert!(!path.exists());
    assert!(matches!(call(&path, &Request::Stop {}, LONG), Err(CallError::NotRunning(_))));
}

#[test]
fn requests_have_this_form() {
    for (json, request) in [
        (r#"{"request":"status"}"#, Request::Status {}),
        (
            r#"{"request":"create_vdisk","name":"a","size":4096}"#,
            Request::CreateVdisk {
                name: "a".to_owned(),
                size: 4096,
                encrypted: None,
                shares: None,
            },
        ),
        (
            r#"{"request":"create_vdisk","name":"a","size":4096,"shares":2}"#,
            Request::CreateVdisk {
                name: "a".to_owned(),
                size: 4096,
                encrypted: None,
                shares: Some(2),
            },
        ),
        (r#"{"request":"switch_over","datanode":1}"#, Request::SwitchOver { datanode: 1 }),
        (r#"{"request":"scrub","datanode":1}"#, Request::Scrub { datanode: 1 }),
        (r#"{"request":"rebuild","datanode":2}"#, Request::Rebuild { datanode: 2 }),
        (
            r#"{"request":"start_empty_log","datanode":1,"accept_data_loss":true}"#,
            Request::StartEmptyLog { datanode: 1, accept_data_loss: true },
        ),
    ] {
        assert_eq!(serde_json::to_string(&request).unwrap(), json);
        assert_eq!(serde_json::from_str::<Request>(json).unwrap(), request);
    }
    for json in [
        r#"{"request":"status","extra":1}"#,
        r#"{"request":"start_empty_log","datanode":1}"#,
        r#"{"request":"explode"}"#,
        r#"{"request":"create_vdisk","name":"a","size":-1}"#,
    ] {
        assert!(serde_json::from_str::<Request>(json).is_err(), "{json}");
    }
    let done = serde_json::to_string(&Response::Ok(Reply::Done {})).unwrap();
    assert_eq!(done, r#"{"ok":{"reply":"done"}}"#);
    let error = serde_json::to_string(&Response::error("no\nroom")).unwrap();
    assert_eq!(error, r#"{"error":{"message":"no room"}}"#);
}

#[test]
fn a_bad_client_gets_an_error_and_nothing_else_happens() {
    let (_directory, path) = place();
    let _server = ControlServer::start(&path, handler).unwrap();
    let mut endless = vec![b'x'; REQUEST_BYTES_MAX + 1];
    for garbage in [b"\xff\xfe\n".to_vec(), b"{}\n".to_vec(), b"\n".to_vec(), {
        endless.push(b'\n');
        endless
    }] {
        let mut stream = UnixStream::connect(&path).unwrap();
        // The server may close before it has read all of it.
        let _ = stream.write_all(&garbage);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8(answer).unwrap();
        assert!(text.starts_with(r#"{"error":"#) && text.ends_with('\n'), "{text}");
        assert!(call(&path, &Request::Status {}, LONG).is_ok());
    }
    // Half a request, and two in one write.
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"{\"request\":").unwrap();
    drop(stream);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(&[line(&Request::Stop {}), line(&Request::Stats {})].concat()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers, "{\"ok\":{\"reply\":\"done\"}}\n".repeat(2));
}

#[test]
fn a_bad_server_is_told_apart() {
    let (_directory, path) = place();
    let listener = UnixListener::bind(&path).unwrap();
    let (answers, given) = mpsc::channel::<&[u8]>();
    let liar = std::thread::spawn(move || {
        for answer in given {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = LineReader::new(REQUEST_BYTES_MAX);
            while let Line::Part = lines.read(&mut stream).unwrap() {}
            stream.write_all(answer).unwrap();
        }
    });
    for answer in [&b""[..], b"{\"ok\":", b"hello\n", b"{\"ok\":{\"reply\":\"other\"}}\n"] {
        answers.send(answer).unwrap();
        let error = call(&path, &Request::Status {}, LONG).unwrap_err();
        assert!(matches!(error, CallError::Protocol { .. }), "{error}");
    }
    drop(answers);
    liar.join().unwrap();
    // One that accepts and stays silent.
    let silent = path.with_extension("silent");
    let _listener = UnixListener::bind(&silent).unwrap();
    let error = call(&silent, &Request::Status {}, Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, CallError::Timeout(_)), "{error}");
}

#[test]
fn a_stopping_server_lets_a_running_request_end() {
    let (_directory, path) = place();
    let (entered, running) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let server = ControlServer::start(&path, move |_| {
        entered.send(()).unwrap();
        wait.lock().unwrap().recv().unwrap();
        Response::Ok(Reply::Done {})
    })
    .unwrap();
    let caller = std::thread::spawn(move || call(&path, &Request::Stop {}, LONG));
    running.recv().unwrap();
    let stopping = std::thread::spawn(move || drop(server));
    go.send(()).unwrap();
    stopping.join().unwrap();
    assert_eq!(caller.join().unwrap().unwrap(), Reply::Done {});
}
