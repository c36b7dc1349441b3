#!/usr/bin/env bash
# Checks the system libraries that Qt and VTK load, installs them where this user may, else names the command.
# usage: system_libraries.sh PYTHON
set -euo pipefail

python=$1
packages=(libegl1 libgl1 libopengl0 libxkbcommon0 libfontconfig1 libdbus-1-3 libglib2.0-0)

missing() {
    "$python" - <<'PY'
import ctypes
import sys

names = ("EGL.so.1", "GL.so.1", "OpenGL.so.0", "xkbcommon.so.0", "fontconfig.so.1", "dbus-1.so.3", "glib-2.0.so.0")
lost = []
if sys.platform.startswith("linux"):
    for name in names:
        try:
            ctypes.CDLL("lib" + name)
        except OSError:
            lost.append("lib" + name)
print(" ".join(lost))
PY
}

lost=$(missing)
[ -z "$lost" ] && exit 0
command="apt-get install -y ${packages[*]}"
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "Installing system libraries that Qt and VTK need: $lost"
    DEBIAN_FRONTEND=noninteractive sh -c "apt-get update -q && $command" >/dev/null
    lost=$(missing)
    [ -z "$lost" ] && exit 0
fi
echo "These system libraries are missing: $lost" >&2
echo "Install them first, on Debian or Ubuntu with:  sudo $command" >&2
exit 1
