# shellcheck shell=bash
# The machine of docs/hub.md: the control plane with the network `field`, and Spoke installed.
install_spoke
install_control
mkdir -p /etc/sysctl.d
printf '[server]\npublic = "control.example.net:8443"\n' >/etc/spoke-control/spoke-control.toml
systemctl start spoke-control
sudo -u spoke-control spoke-control network create field --pool4 10.80.0.0/16
