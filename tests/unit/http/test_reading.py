import pytest

from serve_app.errors import Overloaded
from serve_app.http.reading import Room

MIB = 1 << 20


def test_large_bodies_share_a_room_and_give_it_back():
    room = Room(10 * MIB)
    with room.growing() as first, room.growing() as second:
        first(MIB)  # small ones take none
        first(6 * MIB)
        first(7 * MIB)
        second(5 * MIB)
        with pytest.raises(Overloaded):
            second(6 * MIB)
    with room.growing() as third:
        third(11 * MIB)
        with pytest.raises(Overloaded), room.growing() as fourth:
            fourth(2 * MIB)
