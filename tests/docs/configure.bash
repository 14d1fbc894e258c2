# shellcheck shell=bash
# The machine of docs/configure.md: Spoke is installed, with the reference configuration.
install_spoke
# Its examples, as a reader would uncomment them.
sed -E 's/^#(\[\[?(node|interface|interface\.peer|uplink|uplink\.hub)\]|(id|name|addresses|public_key|allowed_ips|interface|address) =|endpoint = "hub)/\1/' \
  systemd/spoke.toml >/etc/spoke/spoke.toml
chmod 644 /etc/spoke/spoke.toml
wireguard_hub
