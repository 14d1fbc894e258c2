//! Another program that keeps changing what Spoke repairs.
use crate::netns::Namespace;
use crate::supervisor::{REPAIRED, Supervisor, wait_until};
use std::time::Duration;

#[test]
#[expect(clippy::disallowed_methods, reason = "the other program acts in real time")]
fn repairs_against_another_program_become_rare() {
    let device = Namespace::new("device");
    let text = "[health]\nenabled = false\n[[interface]]\nname = \"wg0\"\nmtu = 1400\naddresses = [\"10.8.0.2/24\"]\n";
    let mut spoke = Supervisor::new(&device, text);
    spoke.start();
    let trail = || spoke.command("audit list").output().expect("spoke audit").stdout;
    let entries = |trail: Vec<u8>| String::from_utf8_lossy(&trail).lines().count() as u64;
    let (repairs, before) = (|| spoke.status()["repairs"].as_u64().unwrap_or_default(), entries(trail()));
    let at_first = repairs();
    for _ in 0..60 {
        device.ip("link set wg0 mtu 1300");
        std::thread::sleep(Duration::from_millis(250));
    }
    let made = repairs() - at_first;
    assert!((5..=14).contains(&made), "{made} repairs of 60 changes");
    let condition = spoke.condition("contested");
    assert!(condition.starts_with("something else keeps changing wg0 mtu"), "{condition}");
    let more = entries(trail()) - before;
    assert!(more <= 8, "{more} audit entries: {}", String::from_utf8_lossy(&trail()));
    assert!(String::from_utf8_lossy(&trail()).contains("something else keeps changing wg0 mtu"));

    // What is asked for is done at once; without the other program the rest is repaired as before.
    let mtu = || device.run("ip -j link show wg0");
    let done = spoke.command("drift --repair").output().expect("spoke drift");
    assert!(done.status.success() && mtu().contains("\"mtu\":1400"), "{done:?}");
    device.ip("link set wg0 mtu 1300");
    wait_until(REPAIRED, "the repair", || mtu().contains("\"mtu\":1400"));
}
