"""The tests of sosfs. Asserts in what they share explain themselves as those in the tests do."""

import pytest

pytest.register_assert_rewrite("tests.support.drive", "tests.support.mounting", "tests.support.servers")
