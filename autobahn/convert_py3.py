#!/usr/bin/env python3
"""Make the Python 2 package autobahntestsuite 25.10.1 run on Python 3.

usage: convert_py3.py PACKAGE_DIR [AUTOBAHN_DIR]

PACKAGE_DIR is the unpacked folder autobahntestsuite/ (changed in place),
AUTOBAHN_DIR the installed autobahn 0.10.9 package (two expressions are mended).

Step 1 is fissix (lib2to3) with its standard fixers. Step 2 are the edits below. What a
case sends and what it expects is not touched: the cases' byte strings become
str with one character per octet (the case files are read as latin-1), and
FuzzingProtocol turns them into bytes on the way out and back on the way in.
Every edit must match the given number of times, or the script fails.
"""
import glob
import os
import re
import subprocess
import sys

PKG = os.path.abspath(sys.argv[1])

BYTESTR = '''"""Python 2 byte strings as Python 3 str, one character per octet (latin-1)."""
import binascii as _binascii


def tobytes(s):
   return s.encode("latin-1") if isinstance(s, str) else bytes(s)


def tostr(b):
   return b if isinstance(b, str) else bytes(b).decode("latin-1")


def text(s):
   """For reports only: octets that are meant as UTF-8 text."""
   if s is None:
      return None
   try:
      return tobytes(s).decode("utf-8", "replace")
   except UnicodeEncodeError:
      return s


def b2a_hex(s):
   return _binascii.b2a_hex(tobytes(s)).decode("ascii")


hexlify = b2a_hex
'''

# methods added to FuzzingProtocol: the boundary between the cases' str and the
# WebSocket implementation's bytes
BOUNDARY = '''   def sendFrame(self, opcode, payload = b"", *args, **kwargs):
      return super().sendFrame(opcode, binascii.tobytes(payload), *args, **kwargs)


   def sendMessage(self, payload, *args, **kwargs):
      return super().sendMessage(binascii.tobytes(payload), *args, **kwargs)


   def sendMessageFrameData(self, payload, *args, **kwargs):
      return super().sendMessageFrameData(binascii.tobytes(payload), *args, **kwargs)


   def sendCloseFrame(self, code = None, reasonUtf8 = None, isReply = False):
      if reasonUtf8 is not None:
         ## reasonUtf8 is text when a received close is answered with its reason
         if isReply and isinstance(reasonUtf8, str):
            reasonUtf8 = reasonUtf8.encode("utf-8")
         else:
            reasonUtf8 = binascii.tobytes(reasonUtf8)
      return super().sendCloseFrame(code = code, reasonUtf8 = reasonUtf8, isReply = isReply)


'''


def run_2to3():
    # fissix is lib2to3, which left the standard library in Python 3.13
    run = subprocess.run([sys.executable, "-W", "ignore", "-m", "fissix", "-w", "-n",
                          "--no-diffs", PKG], stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        sys.exit("fissix failed:\n" + run.stdout[-2000:])


def edit(rel, *edits):
    path = os.path.join(PKG, rel)
    with open(path, encoding="latin-1", newline="") as f:
        src = f.read().replace("\r\n", "\n")
    for old, new, count in edits:
        n = src.count(old)
        if n != count:
            sys.exit("%s: %r matches %d times, not %d" % (rel, old, n, count))
        src = src.replace(old, new)
    with open(path, "w", encoding="latin-1", newline="") as f:
        f.write(src)


def main():
    run_2to3()
    with open(os.path.join(PKG, "_bytestr.py"), "w") as f:
        f.write(BYTESTR)

    # --- all case files: read as latin-1, hex functions that take str, no (object, Case)
    for path in glob.glob(os.path.join(PKG, "case", "*.py")):
        with open(path, encoding="latin-1", newline="") as f:
            src = f.read().replace("\r\n", "\n")
        # the first coding line wins
        src = "# -*- coding: latin-1 -*-\n" + src
        src = re.sub(r"(?m)^import binascii *$", "from .. import _bytestr as binascii", src)
        src = src.replace("(object, Case, )", "(Case, )")
        with open(path, "w", encoding="latin-1", newline="") as f:
            f.write(src)

    # case 9.9.1 is not in the list of cases, and needs zope.interface.implements
    edit("case/__init__.py", ("from .case9_9_1 import *\n", "", 1))
    edit("case/case.py",
         ("return pickle.dumps(obj1) == pickle.dumps(obj2)", "return obj1 == obj2", 1))
    edit("case/case6_x_x.py",
         ("res = v.validate(vss[:i])", "res = v.validate(binascii.tobytes(vss[:i]))", 1))
    edit("case/case10_1_1.py",
         ("len(self.payload) / self.p.autoFragmentSize",
          "len(self.payload) // self.p.autoFragmentSize", 1))
    edit("case/case12_x_x.py",
         ("import copy, os, pkg_resources, hashlib, binascii",
          "import copy, os, pkg_resources, hashlib\nfrom .. import _bytestr as binascii", 1),
         ("def onMessage(self, msg, binary):\n",
          "def onMessage(self, msg, binary):\n   msg = binascii.tobytes(msg)\n", 1))

    # mode "serializer" (WAMP) needs unittest2
    edit("wstest.py", ("from . import serializer\n", "", 1))
    edit("fuzzing.py",
         ("import os, json, binascii, time, textwrap, pkg_resources",
          "import os, json, time, textwrap, pkg_resources\nfrom . import _bytestr as binascii", 1),
         # text in the reports
         ("      return dd.decode('utf8', errors = 'replace' if replace else 'strict')",
          "      return binascii.tobytes(dd).decode('utf8', errors = 'replace' if replace else 'surrogatepass')", 1),
         ("         dd = data[:maxlen] + ellipses",
          "         dd = binascii.tostr(data[:maxlen]) + ellipses", 1),
         ("         p = ''.join(payload)", "         p = b''.join(payload)", 1),
         ('"description": self.Case.DESCRIPTION,', '"description": binascii.text(self.Case.DESCRIPTION),', 1),
         ('"expectation": self.Case.EXPECTATION,', '"expectation": binascii.text(self.Case.EXPECTATION),', 1),
         ('"localCloseReason": self.localCloseReason,', '"localCloseReason": binascii.text(self.localCloseReason),', 1),
         ("self.http_request_data if hasattr", "binascii.tostr(self.http_request_data) if hasattr", 1),
         ("self.http_response_data if hasattr", "binascii.tostr(self.http_response_data) if hasattr", 1),
         ("open(os.path.join(outdir, report_filename), 'w')",
          "open(os.path.join(outdir, report_filename), 'w', encoding = 'utf-8', errors = 'backslashreplace')", 4),
         ("c[1])).encode(\"utf-8\"))", "c[1])))", 1),
         ("ll.encode('utf8')", "ll", 1),
         ("% CCase.DESCRIPTION)", "% binascii.text(CCase.DESCRIPTION))", 1),
         ("% CCase.EXPECTATION)", "% binascii.text(CCase.EXPECTATION))", 1),
         # the boundary
         ("   def enableWirelog(self, enable):", BOUNDARY + "   def enableWirelog(self, enable):", 1),
         ("   def onPong(self, payload):\n",
          "   def onPong(self, payload):\n      payload = binascii.tostr(payload)\n", 1),
         ("   def onMessage(self, msg, binary):\n",
          "   def onMessage(self, msg, binary):\n      msg = binascii.tostr(msg)\n", 1))

    if len(sys.argv) > 2:
        path = os.path.join(sys.argv[2], "websocket", "protocol.py")
        with open(path, encoding="utf-8", newline="") as f:
            src = f.read()
        for old, new in (
                ("range(payload_len / len(payload))", "range(payload_len // len(payload))"),
                # Python 2's decoder lets surrogates pass (a peer's bad close reason)
                ("reasonRaw.decode('utf8')", "reasonRaw.decode('utf8', 'surrogatepass')")):
            if new not in src:
                if src.count(old) != 1:
                    sys.exit("autobahn/websocket/protocol.py is not that of 0.10.9")
                src = src.replace(old, new)
        with open(path, "w", encoding="utf-8", newline="") as f:
            f.write(src)


main()
