# shellcheck shell=bash
# The machine of docs/lifecycle.md: a connected device with the agent API, which is the control plane as well.
install_spoke
install -d -o spoke -m 700 /var/lib/spoke
(umask 077 && openssl rand -base64 32 >/var/lib/spoke/agent.secret) && chown spoke /var/lib/spoke/agent.secret
device '[agent]
enabled = true
secret = "file:/var/lib/spoke/agent.secret"'

# Each file of the device in turn is gone at a restart, and then all of them. The hub of this machine admits whatever key wg0 has.
lost_files_of_a_device() {
  local file key
  for file in hub-endpoints clock.json clock-boot.json stamped-until.json changes.journal audit.log agent.secret; do
    rm -f "/var/lib/spoke/$file"
    systemctl restart spoke
    within 60 is healthy
  done
  within 20 no_agent
  key=$(spoke key public --interface wg0)
  mv /etc/spoke/spoke.toml /root/spoke.toml
  refused spoke check
  systemctl restart spoke || true
  wg show wg0 latest-handshakes
  mv /root/spoke.toml /etc/spoke/spoke.toml
  systemctl reset-failed spoke
  rm /var/lib/spoke/wg0.key
  systemctl restart spoke
  within 60 is healthy
  [ "$(spoke key public --interface wg0)" != "$key" ]
  systemctl stop spoke
  find /var/lib/spoke -mindepth 1 -delete
  systemctl start spoke
  within 60 is healthy
}
refused() { if "$@"; then return 1; fi; }
no_agent() { refused curl -fsS -m 2 http://127.0.0.1:8081/health; }

lost_files_of_the_control_plane() {
  local state=/var/lib/spoke-control
  install_control
  printf '[server]\npublic = "control.example.net:8443"\n' >/etc/spoke-control/spoke-control.toml
  systemctl start spoke-control
  within 60 control_answers
  systemctl stop spoke-control
  mkdir /root/kept
  mv "$state"/fleet.db* /root/kept/
  refused control status
  rm -f "$state"/fleet.db*
  mv /root/kept/fleet.db* "$state/"
  control status
  mv "$state/master.key" /root/kept/
  refused control serve
  mv /root/kept/master.key "$state/"
  pin=$(control pin)
  rm "$state"/tls.crt "$state"/tls.key
  systemctl start spoke-control
  within 60 control_answers
  [ "$(control pin)" != "$pin" ]
}
control() { sudo -u spoke-control timeout 30 spoke-control "$@"; }
control_answers() { curl -ksS -m 2 https://127.0.0.1:8443/api/openapi.json; }
