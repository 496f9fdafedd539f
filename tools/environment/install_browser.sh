#!/usr/bin/env bash
# Install Debian's chromium for the tests that look at pages, if no browser is on the PATH and this user may.
# Where that is impossible it says so and succeeds: those tests are then skipped.
set -uo pipefail
for browser in chromium chromium-browser google-chrome; do
    if command -v "$browser" > /dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    timeout 300 apt-get install -yqq --no-install-recommends chromium < /dev/null > /dev/null 2>&1 ||
        { timeout 120 apt-get update -qq > /dev/null 2>&1; timeout 300 apt-get install -yqq --no-install-recommends chromium < /dev/null > /dev/null 2>&1; }
fi
command -v chromium > /dev/null || echo "no browser: the tests that look at pages are skipped"
