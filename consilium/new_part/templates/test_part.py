"""What every method must hold, checked for `my_part`."""

from consilium.testing import method_contract

test_my_part = method_contract("my_part")
