"""How much memory there is."""

from sllmd.telemetry.memory import available_memory_bytes, total_memory_bytes


def test_this_machine_has_memory():
    assert 0 < available_memory_bytes() < total_memory_bytes()
