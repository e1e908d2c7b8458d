"""A domain is left on no chain that its libvirt does not take."""

import pytest
from tests.support.long_chain import make_long_chain

from chainlift import open_chain
from chainlift.chain.libvirt_limits import libvirt_limit
from chainlift.errors import ImageError
from chainlift.host.virsh import daemon_version
from chainlift.lift.domain.chain_limit import refuse_longer, refuse_one_more

pytestmark = [pytest.mark.integration, pytest.mark.needs("libvirt")]


def test_a_chain_is_refused_from_the_first_layer_on_that_libvirt_does_not_take(place, tmp_path):
    version = daemon_version()
    limit = libvirt_limit(version)
    files = make_long_chain(tmp_path, limit.longest)
    image = tmp_path / "active.qcow2"
    with open_chain(files[-2]) as chain:
        refuse_longer(version, chain.layers, image)
    with open_chain(files[-1]) as chain, pytest.raises(ImageError, match=f"would have {limit.longest + 1} layers"):
        refuse_longer(version, chain.layers, image)


def test_one_snapshot_more_is_refused_where_libvirt_refuses_it(tmp_path):
    refuse_one_more(198, tmp_path)
    with pytest.raises(ImageError, match="has 199 layers over the base, and libvirt takes no snapshot more"):
        refuse_one_more(199, tmp_path)
