#!/bin/sh
# Makes sure that MuJoCo can draw without a screen: the OSMesa library, unless MUJOCO_GL chooses another way.
set -eu
PATH=$PATH:/usr/sbin:/sbin
[ "${MUJOCO_GL:-osmesa}" = osmesa ] || exit 0
found() { ldconfig -p 2>/dev/null | grep -q libOSMesa; }
found && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing libosmesa6 (software OpenGL for MuJoCo)"
  { apt-get install -y -qq libosmesa6 || { apt-get update -qq && apt-get install -y -qq libosmesa6; }; } >/dev/null
  found && exit 0
fi
echo "wamkit needs the system library OSMesa to draw: install it (Debian, Ubuntu: sudo apt-get install libosmesa6)," >&2
echo "or run with MUJOCO_GL=egl, which needs a GPU and its driver, or libegl1, and is the way where no libosmesa6 is to be had" >&2
exit 1
