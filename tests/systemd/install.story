#!/bin/bash
# The units as a distribution finds them: accepted without a word, with the account and directories they need.
# shellcheck source=tests/systemd/story.bash
. /usr/lib/story.bash

confined() { systemd-analyze security --threshold=20 --no-pager "$1"; }

claim "the system is up without a failed unit" is running systemctl is-system-running --wait
for unit in /usr/lib/systemd/system/spoke*.service; do
  unit=$(basename "$unit")
  claim "$unit is accepted without a word" quietly systemd-analyze verify --man=no "$unit"
  claim "$unit has an exposure of at most 2.0" confined "$unit"
done
claim "the account is made" systemd-sysusers /usr/lib/sysusers.d/spoke.conf
claim "the account cannot log in" is /usr/sbin/nologin sh -c 'getent passwd spoke | cut -d: -f7'
claim "the directories are made" systemd-tmpfiles --create /usr/lib/tmpfiles.d/spoke.conf
claim "the configuration's directory is root's" is "root 755" stat -c '%U %a' /etc/spoke
claim "the services may be enabled" systemctl enable spoke.service spoke-clock.service
end_story
