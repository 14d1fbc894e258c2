#!/bin/bash
# A board without a clock of its own boots in 1970: the clock is put to where it cannot be before, and a hub that has seen
# later handshakes of this key takes new ones.
# shellcheck source=tests/systemd/story.bash
. /usr/lib/story.bash

year_is_plausible() { [ "$(date +%Y)" -ge 2025 ]; }
not_before() { [ "$(date +%s)" -ge "$1" ]; }
shaken_since() { [ "$(ip netns exec hub wg show wg0 latest-handshakes | cut -f2)" != "$1" ]; }
health_says() { curl -fsS -m 5 http://127.0.0.1:8080/health | grep -F "$1"; }
latest() { ip netns exec hub wg show wg0 latest-handshakes | cut -f2; }
# power_cycle: the interface goes with the kernel's memory, the clock with the power.
power_cycle() {
  systemctl stop spoke.service spoke-clock.service
  ip link del wg0
  date --set 1970-01-02 >/dev/null
}

hub=$(make_hub)
systemd-sysusers /usr/lib/sysusers.d/spoke.conf
systemd-tmpfiles --create /usr/lib/tmpfiles.d/spoke.conf
cat >/etc/spoke/spoke.toml <<CONFIG
[[interface]]
name = "wg0"
addresses = ["10.9.0.2/24"]
[[interface.peer]]
name = "hub"
public_key = "$hub"
endpoint = "192.0.2.1:51820"
allowed_ips = ["10.9.0.1/32"]
keepalive = 5
CONFIG

# --- the first boot of all, in 1970: there is only the build's time ---
date --set 1970-01-02 >/dev/null
claim "it starts in 1970" systemctl start spoke.service
claim "the clock is not before the build" year_is_plausible
claim "it was set by a unit that may do nothing else" is cap_sys_time property CapabilityBoundingSet spoke-clock.service
admit "$(wg show wg0 public-key)" 10.9.0.2
claim "health does not believe it" health_says '"clock_trusted":false'
claim "the tunnel comes up" ping -c 3 -W 5 10.9.0.1
claim "the service cannot set the clock itself" fails grep -q cap_sys_time <(systemctl show --property CapabilityBoundingSet spoke.service)

# --- a later boot in 1970, with a hub that has seen later handshakes of this key ---
date --set '+30 days' >/dev/null
claim "the tunnel is used a month later" systemctl restart spoke.service
sleep 200
claim_within 30 "the hub has a handshake of a month later" ping -c 1 -W 5 10.9.0.1
claim_within 90 "a clock that somebody has set is believed" health_says '"clock_trusted":true'
seen=$(date +%s) was=$(latest)
power_cycle
claim "the clock is back in 1970" fails not_before "$seen"
claim "it starts again" systemctl start spoke.service
claim "the clock is not before the last stamp" not_before "$seen"
claim_within 30 "the hub takes its handshake" shaken_since "$was"
claim_within 30 "the tunnel carries traffic" ping -c 1 -W 5 10.9.0.1
claim "nobody was denied anything" fails grep -qi "denied\|not permitted" <(journalctl -b -u spoke.service -u spoke-clock.service)
end_story
