//! What `spoke doctor` looks at on a hub and about the control plane.
use super::probe::{Finding, Level, finding};
use spoke_config::control::Control;
use spoke_config::effective::Effective;
use spoke_sys::http::{Http as _, HttpError, HttpsClient, Request, Trust};
use std::time::Duration;

/// Whether the machine forwards where its peers are to reach each other; nothing where nobody asks for it.
pub fn forwarding(config: &Effective) -> Vec<Finding> {
    let asked = config.interfaces().filter(|i| i.forwarding());
    let mut out = Vec::new();
    for interface in asked {
        let six = interface.addresses().iter().any(|a| a.0.addr().is_ipv6());
        let settings = [("net.ipv4.ip_forward", true), ("net.ipv6.conf.all.forwarding", six)];
        for (setting, _) in settings.into_iter().filter(|(_, needed)| *needed) {
            let path = format!("/proc/sys/{}", setting.replace('.', "/"));
            let what = format!("forwarding on {}", interface.own().name);
            out.push(match std::fs::read_to_string(&path).as_deref().map(str::trim) {
                Ok("0") => {
                    let remedy = format!("sysctl -w {setting}=1, and a line of it in /etc/sysctl.d");
                    finding(what, Level::Warn, format!("peers may reach each other, but {setting} is 0"), &remedy)
                }
                _ => finding(what, Level::Ok, format!("{setting} is on"), ""),
            });
        }
    }
    out
}

/// Whether the control plane answers and is the one that is expected. Its absence does not keep the tunnel down.
pub async fn control(control: &Control) -> Finding {
    let what = "control plane";
    let ask = Request {
        method: "GET",
        path: spoke_enroll::wire::STATE.to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
        max: 64 << 10,
        timeout: Duration::from_secs(15),
    };
    let mut client = match client(control) {
        Ok(client) => client,
        Err(e) => return finding(what, Level::Fail, e, "mend control.ca"),
    };
    match client.send(ask).await {
        // Without a proof it says no, and that is an answer.
        Ok(answer) => finding(what, Level::Ok, format!("{} answers (status {})", control.url.0, answer.status), ""),
        Err(e @ HttpError::Untrusted(_)) => {
            let remedy =
                "compare control.pin with what `spoke-control serve` prints, or control.ca with its certificate";
            finding(what, Level::Warn, format!("{}: {e}", control.url.0), remedy)
        }
        Err(e) => finding(
            what,
            Level::Warn,
            format!("{}: {e}", control.url.0),
            "check control.url and the way to it; the last good state stays in force meanwhile",
        ),
    }
}

fn client(control: &Control) -> Result<HttpsClient, String> {
    let trust = match (&control.pin, &control.ca) {
        (Some(pin), _) => Trust::Pin(pin.0),
        (None, Some(path)) => Trust::Own(spoke_sys::disk::read_public(path).map_err(|e| e.to_string())?),
        (None, None) => Trust::Public,
    };
    HttpsClient::new(control.url.0.clone(), &trust).map_err(|e| e.to_string())
}
