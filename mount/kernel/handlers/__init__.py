"""What each request is answered by. Of what is missing here the kernel is told ENOSYS.

Threading: a handler may run in any thread of the session, and waits for no other request.
"""

from __future__ import annotations

from ..context import Handler
from ..wire import Op
from . import attributes, directories, files, life, locks, names

HANDLERS: dict[int, Handler] = {
    Op.LOOKUP: names.lookup,
    Op.FORGET: life.forget,
    Op.GETATTR: attributes.get_attributes,
    Op.SETATTR: attributes.set_attributes,
    Op.READLINK: names.readlink,
    Op.SYMLINK: names.symlink,
    Op.MKNOD: names.mknod,
    Op.MKDIR: names.mkdir,
    Op.UNLINK: names.unlink,
    Op.RMDIR: names.rmdir,
    Op.RENAME: names.rename,
    Op.LINK: names.link,
    Op.OPEN: files.open_file,
    Op.READ: files.read,
    Op.WRITE: files.write,
    Op.STATFS: attributes.statfs,
    Op.RELEASE: files.release,
    Op.FSYNC: files.fsync,
    Op.SETXATTR: attributes.setxattr,
    Op.GETXATTR: attributes.getxattr,
    Op.LISTXATTR: attributes.listxattr,
    Op.REMOVEXATTR: attributes.removexattr,
    Op.FLUSH: files.flush,
    Op.INIT: life.init,
    Op.OPENDIR: directories.opendir,
    Op.READDIR: directories.readdir,
    Op.RELEASEDIR: directories.releasedir,
    Op.FSYNCDIR: directories.fsyncdir,
    Op.GETLK: locks.getlk,
    Op.SETLK: locks.setlk,
    Op.SETLKW: locks.setlkw,
    Op.CREATE: files.create,
    Op.INTERRUPT: life.interrupt,
    Op.DESTROY: life.destroy,
    Op.BATCH_FORGET: life.batch_forget,
    Op.FALLOCATE: files.fallocate,
    Op.READDIRPLUS: directories.readdirplus,
    Op.RENAME2: names.rename2,
    Op.LSEEK: files.lseek,
    Op.COPY_FILE_RANGE: files.copy_file_range,
}
