# Lets gdb go through the frames of functions whose return beeline probes:  gdb -p PID -x <(beeline gdb)
#
# The return address of such a call lies in the thread's return stack; on the stack stands an address of beeline's code, the
# return point. That is a frame of its own here: its caller is the function's caller, with the same stack pointer.
import struct

import gdb
from gdb.unwinder import Unwinder, register_unwinder


class _FrameId:
    def __init__(self, sp, pc):
        self.sp = sp
        self.pc = pc


class _ReturnPoints(Unwinder):
    MAPPING = "@MAPPING@"
    KEPT = ("rax", "rdx", "rbx", "rbp", "r12", "r13", "r14", "r15")

    def __init__(self):
        super().__init__("beeline")
        self.known = {}
        for event in (gdb.events.cont, gdb.events.new_objfile, gdb.events.exited):
            event.connect(lambda _: self.known.clear())

    def read(self, address, length):
        return bytes(gdb.selected_inferior().read_memory(address, length))

    def mappings(self, pid):
        """First byte, byte behind the last, rights of every mapping of ours."""
        with open("/proc/%d/maps" % pid) as file:
            for line in file:
                if self.MAPPING in line:
                    area, rights = line.split()[:2]
                    start, end = (int(it, 16) for it in area.split("-"))
                    yield start, end, rights

    def returns(self, pid):
        """Return address by return point and stack pointer there, of all calls that have not returned."""
        found = {}
        for start, _, rights in self.mappings(pid):
            if "w" not in rights:
                continue
            magic, version = struct.unpack("<QI", self.read(start + @MAGIC_AT@, 12))
            if magic != @MAGIC@ or version != @VERSION@:
                continue
            (threads,) = struct.unpack("<Q", self.read(start + @THREADS_AT@, 8))
            table = self.read(threads, @THREAD_SLOTS@ * @THREAD_LEN@)
            for at in range(0, len(table), @THREAD_LEN@):
                word = lambda offset: struct.unpack_from("<Q", table, at + offset)[0]
                base, top = word(@BASE_AT@), word(@TOP_AT@)
                count = (top - base) // @RETURN_LEN@
                if word(@KEY_AT@) and base and 0 < count <= @RETURNS_MAX@:
                    entries = self.read(base, count * @RETURN_LEN@)
                    for entry in range(0, len(entries), @RETURN_LEN@):
                        part = lambda offset: struct.unpack_from("<Q", entries, entry + offset)[0]
                        found[part(@POINT_AT@), part(@SP_AT@) + 8] = part(@ADDRESS_AT@)
        return found

    def __call__(self, frame):
        pid = gdb.selected_inferior().pid
        pc, sp = frame.read_register("rip"), frame.read_register("rsp")
        here = int(pc) & (1 << 64) - 1, int(sp) & (1 << 64) - 1
        try:
            if not any(start <= here[0] < end and "x" in rights for start, end, rights in self.mappings(pid)):
                return None
            if not self.known:
                self.known = self.returns(pid)
            address = self.known.get(here)
        except (OSError, gdb.MemoryError, struct.error):
            return None
        if address is None:
            return None
        info = frame.create_unwind_info(_FrameId(sp, pc))
        for name in self.KEPT:
            info.add_saved_register(name, frame.read_register(name))
        info.add_saved_register("rsp", sp)
        info.add_saved_register("rip", gdb.Value(address).cast(pc.type))
        return info


register_unwinder(None, _ReturnPoints(), replace=True)
