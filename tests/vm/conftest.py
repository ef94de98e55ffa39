"""The real libvirt of the tests of its provider."""

from importlib.util import find_spec

if find_spec("libvirt"):  # tests of images run without its binding
    from tests.vm.libvirthost import host, provider

    __all__ = ["host", "provider"]
