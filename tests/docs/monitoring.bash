# shellcheck shell=bash
# The machine of docs/monitoring.md: a connected device that is the control plane as well.
device
install_control
printf '[server]\npublic = "control.example.net:8443"\n' >/etc/spoke-control/spoke-control.toml
monitored_device() { printf '[health]\ndetails_from = ["10.8.0.1/32"]\n' >>/etc/spoke/spoke.toml; }
monitored_control_plane() { printf '[metrics]\nlisten = ["127.0.0.1:8445"]\n' >>/etc/spoke-control/spoke-control.toml; }
