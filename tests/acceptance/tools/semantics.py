#!/usr/bin/env python3
"""What the files promise, row by row: docs/semantics.md names these tests.

    semantics.py POOL [SECOND_POOL] [TEST]...   all tests by default

Each test makes the volumes that it needs in the folder POOL and removes them. Volumes have
clusters of CLUSTER bytes. Exits 1 if one failed.
"""
import errno
import fcntl
import mmap
import os
import stat
import subprocess
import sys
import traceback

MIB = 1 << 20
CLUSTER = MIB
pool = second = None
tests = []


def test(function):
    tests.append(function)
    return function


class Volume:
    """A new volume of a size, removed at the end."""

    def __init__(self, name, size):
        self.path, self.size = os.path.join(pool, name), size

    def __enter__(self):
        with open(self.path, "xb") as file:
            file.truncate(self.size)
        return self.path

    def __exit__(self, *_):
        if os.path.exists(self.path):
            os.remove(self.path)


def fails(number, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == number, f"{errno.errorcode[error.errno]}, not {errno.errorcode[number]}"
        return
    raise AssertionError(f"succeeded, but {errno.errorcode[number]} was expected")


def run(*command, ok=True):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode == 0) == ok, f"{command}: {done.returncode} {done.stderr}"
    return done.stdout + done.stderr


def read(path, offset=0, length=None):
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def write(path, offset, data, flags=0):
    file = os.open(path, os.O_WRONLY | flags)
    try:
        assert os.pwrite(file, data, offset) == len(data)
    finally:
        os.close(file)


def allocated(path):
    return os.stat(path).st_blocks * 512


@test
def sizes_are_whole_clusters():
    with Volume("v", 3 * CLUSTER + 1) as path:
        assert os.stat(path).st_size == 4 * CLUSTER
        assert stat.S_ISREG(os.stat(path).st_mode)


@test
def truncate_grows_with_zeros_and_cuts():
    with Volume("v", 2 * CLUSTER) as path:
        write(path, 0, b"x" * 2 * CLUSTER)
        os.truncate(path, 4 * CLUSTER)
        assert os.stat(path).st_size == 4 * CLUSTER and read(path, 2 * CLUSTER) == bytes(2 * CLUSTER)
        os.truncate(path, CLUSTER)
        assert os.stat(path).st_size == CLUSTER and allocated(path) == CLUSTER
        os.truncate(path, 2 * CLUSTER)
        assert read(path, CLUSTER) == bytes(CLUSTER)


@test
def o_trunc_keeps_the_size_and_truncate_does_not():
    with Volume("v", 4 * CLUSTER) as path:
        write(path, 3 * CLUSTER, b"tail")
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        assert os.stat(path).st_size == 4 * CLUSTER and read(path, 3 * CLUSTER, 4) == b"tail"
        run("sh", "-c", f"echo head >'{path}'")
        assert os.stat(path).st_size == 4 * CLUSTER and read(path, 0, 5) == b"head\n"
        os.truncate(path, 0)
        assert os.stat(path).st_size == 0
        file = os.open(path, os.O_RDWR)
        os.ftruncate(file, CLUSTER)
        os.ftruncate(file, 0)
        os.close(file)
        assert os.stat(path).st_size == 0


@test
def dd_and_cp_onto_a_volume_keep_its_size():
    with Volume("v", 4 * CLUSTER) as path, open("/tmp/.lvolfs-semantics", "wb") as source:
        data = os.urandom(CLUSTER + 4096)
        source.write(data)
        source.flush()
        for command in (["dd", "if=" + source.name, "of=" + path, "bs=64k", "conv=fsync"],
                        ["dd", "if=" + source.name, "of=" + path, "bs=64k", "oflag=dsync"],
                        ["cp", source.name, path]):
            run(*command)
            assert os.stat(path).st_size == 4 * CLUSTER and read(path, 0, len(data)) == data, command
        os.remove(source.name)


@test
def cp_to_a_new_name_makes_a_volume():
    with Volume("v", 4 * CLUSTER) as path, Volume("copy", 0) as copy:
        write(path, 2 * CLUSTER, b"data" * 1024)
        os.remove(copy)
        run("cp", "--sparse=always", path, copy)
        assert read(copy) == read(path)
        assert allocated(copy) <= CLUSTER


@test
def mv_across_pools_copies():
    with Volume("v", 2 * CLUSTER) as path:
        write(path, 5, b"moved")
        there = os.path.join(second, "moved")
        fails(errno.EXDEV, os.rename, path, there)
        run("mv", path, there)
        assert not os.path.exists(path) and read(there, 5, 5) == b"moved"
        os.remove(there)


@test
def rename_onto_an_existing_name_replaces():
    with Volume("a", CLUSTER) as a, Volume("b", 2 * CLUSTER) as b:
        write(a, 0, b"a")
        os.rename(a, b)
        assert not os.path.exists(a) and os.stat(b).st_size == CLUSTER and read(b, 0, 1) == b"a"


@test
def rm_of_an_open_volume_keeps_it_until_closed():
    with Volume("v", CLUSTER) as path:
        file = os.open(path, os.O_RDWR)
        os.pwrite(file, b"still", 0)
        os.remove(path)
        assert not os.path.exists(path) and os.pread(file, 5, 0) == b"still"
        assert os.pwrite(file, b"here", 4096) == 4 and os.fstat(file).st_nlink == 0
        os.close(file)


@test
def fallocate_allocates_punches_and_zeroes():
    with Volume("v", 4 * CLUSTER) as path:
        run("fallocate", "-l", str(2 * CLUSTER), path)
        assert allocated(path) == 2 * CLUSTER
        write(path, 0, b"x" * 2 * CLUSTER)
        run("fallocate", "-p", "-o", "100", "-l", str(CLUSTER + 100), path)
        assert read(path, 0, 101) == b"x" * 100 + b"\0" and read(path, CLUSTER + 199, 2) == b"\0x"
        run("fallocate", "-p", "-o", "0", "-l", str(CLUSTER), path)
        assert allocated(path) == CLUSTER
        run("fallocate", "-z", "-o", str(CLUSTER), "-l", "8192", path)
        assert read(path, CLUSTER, 8193) == bytes(8192) + b"x"
        run("fallocate", "-l", str(6 * CLUSTER), path)
        assert os.stat(path).st_size == 6 * CLUSTER
        run("fallocate", "-c", "-o", "0", "-l", str(CLUSTER), path, ok=False)


@test
def seek_hole_and_data_tell_the_map():
    with Volume("v", 4 * CLUSTER) as path:
        write(path, 2 * CLUSTER, b"x")
        file = os.open(path, os.O_RDONLY)
        assert os.lseek(file, 0, os.SEEK_DATA) == 2 * CLUSTER
        assert os.lseek(file, 2 * CLUSTER, os.SEEK_HOLE) == 3 * CLUSTER
        fails(errno.ENXIO, os.lseek, file, 3 * CLUSTER, os.SEEK_DATA)
        fails(errno.ENXIO, os.lseek, file, 4 * CLUSTER, os.SEEK_HOLE)
        os.close(file)


@test
def writes_end_where_the_volume_ends():
    with Volume("v", CLUSTER) as path:
        file = os.open(path, os.O_RDWR)
        assert os.pwrite(file, b"abc", CLUSTER - 1) == 1
        fails(errno.ENOSPC, os.pwrite, file, b"x", CLUSTER)
        assert os.pread(file, 10, CLUSTER - 1) == b"a" and os.pread(file, 10, CLUSTER) == b""
        os.close(file)


@test
def mmap_and_msync_reach_the_volume():
    with Volume("v", CLUSTER) as path:
        file = os.open(path, os.O_RDWR)
        memory = mmap.mmap(file, CLUSTER)
        memory[5000:5007] = b"through"
        memory.flush()
        assert os.pread(file, 7, 5000) == b"through"
        memory.close()
        os.close(file)


@test
def unaligned_direct_io_works():
    with Volume("v", CLUSTER) as path:
        write(path, 0, b"x" * 8192)
        file = os.open(path, os.O_RDWR | os.O_DIRECT)
        buffer = mmap.mmap(-1, 8192)
        buffer[:3] = b"abc"
        assert os.pwritev(file, [memoryview(buffer)[:3]], 777) == 3
        assert os.preadv(file, [memoryview(buffer)[1:6]], 776) == 5
        assert bytes(buffer[1:6]) == b"xabcx"
        os.close(file)


@test
def append_goes_to_the_end_and_there_is_full():
    with Volume("v", CLUSTER) as path:
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        fails(errno.ENOSPC, os.write, file, b"x")
        os.close(file)
        os.truncate(path, 0)
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        assert os.write(file, b"first") == 5
        os.close(file)
        assert read(path, 0, 5) == b"first"


@test
def locks_hold_between_programs():
    with Volume("v", CLUSTER) as path:
        with open(path, "r+b") as one:
            fcntl.flock(one, fcntl.LOCK_EX)
            run("flock", "-n", path, "true", ok=False)
            fcntl.flock(one, fcntl.LOCK_UN)
            run("flock", "-n", path, "true")
            fcntl.lockf(one, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 50)
            code = ("import fcntl,sys; f=open(sys.argv[1],'r+b'); "
                    "fcntl.lockf(f, fcntl.LOCK_EX|fcntl.LOCK_NB, 10, int(sys.argv[2]))")
            run(sys.executable, "-c", code, path, "60", ok=False)
            run(sys.executable, "-c", code, path, "200")


@test
def df_and_du_tell_what_is_used():
    before = os.statvfs(pool)
    with Volume("v", 8 * CLUSTER) as path:
        write(path, 0, b"x" * 3 * CLUSTER)
        after = os.statvfs(pool)
        used = (before.f_bfree - after.f_bfree) * after.f_frsize
        assert used == 3 * CLUSTER, used
        assert run("du", "--block-size=1", path).split()[0] == str(3 * CLUSTER)
        assert run("du", "--apparent-size", "--block-size=1", path).split()[0] == str(8 * CLUSTER)


@test
def owner_mode_and_times_are_kept():
    with Volume("v", CLUSTER) as path:
        os.chmod(path, 0o640)
        if os.geteuid() == 0:
            os.chown(path, 1234, 4321)
        os.utime(path, (1000, 2000.5))
        seen = os.stat(path)
        assert seen.st_mode & 0o7777 == 0o640 and (seen.st_atime, seen.st_mtime) == (1000, 2000.5)
        if os.geteuid() == 0:
            assert (seen.st_uid, seen.st_gid) == (1234, 4321)


@test
def attributes_are_shown_and_stored():
    with Volume("v", CLUSTER) as path:
        os.setxattr(path, "user.note", b"mine")
        assert os.getxattr(path, "user.note") == b"mine"
        shown = run("getfattr", "-d", path)
        assert "user.lvolfs.uuid" in shown and 'user.note="mine"' in shown
        fails(errno.EPERM, os.setxattr, path, "user.lvolfs.uuid", b"x")
        os.removexattr(path, "user.note")
        fails(errno.ENODATA, os.getxattr, path, "user.note")


@test
def directories_and_links_are_refused():
    with Volume("v", CLUSTER) as path:
        fails(errno.EPERM, os.mkdir, os.path.join(pool, "d"))
        fails(errno.EPERM, os.link, path, path + "2")
        fails(errno.EPERM, os.symlink, path, path + "2")
        fails(errno.EPERM, os.rmdir, pool)


def main():
    global pool, second
    pool, rest = sys.argv[1], sys.argv[2:]
    if rest and os.path.isdir(rest[0]):
        second = rest.pop(0)
    failed = 0
    for function in tests:
        if rest and function.__name__ not in rest:
            continue
        try:
            function()
            print("ok", function.__name__)
        except Exception:
            failed += 1
            print("FAILED", function.__name__)
            traceback.print_exc(file=sys.stdout)
    sys.exit(1 if failed else 0)


main()
