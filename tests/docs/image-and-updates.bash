# shellcheck shell=bash
# The machine of docs/image-and-updates.md: the control plane with the network `field` and an announced node.
install_control
printf '[server]\npublic = "control.example.net:8443"\n' >/etc/spoke-control/spoke-control.toml
systemctl start spoke-control
sudo -u spoke-control spoke-control network create field --pool4 10.80.0.0/16
# A node that is known without a device behind it.
sudo -u spoke-control spoke-control hub add edge-1 --network field --endpoint edge-1.example.net:51820
