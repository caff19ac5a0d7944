"""Which servers of a job are taken: each looked at by itself, and then whether there is room for all of them.

Touches who is at work on what in the target, the ownership of names, and the records of jobs that are refused; looks
at the store and the cache drives. admission.py has the rules. What earlier jobs of a server began and left is finished
first, through cycle.py and publish.py.
"""

from __future__ import annotations

import logging
from typing import Dict, List, Sequence, Tuple

from anvil_dr.caching import caching
from anvil_dr.caching.cache_plan import CachePlan
from anvil_dr.cycling import cycle
from anvil_dr.errors import AnvilDrError
from anvil_dr.model import JobRecord
from anvil_dr.receiving import admission, announcement, publish, space
from anvil_dr.receiving.target import Target
from anvil_dr.wire.protocol import Job, Refusal, ServerOffer, ServerPlan

log = logging.getLogger(__name__)


class JobAdmission:
    """The answer to one announcement."""

    def __init__(self, target: Target, job_id: str, node: str, allowed: Sequence[str]) -> None:
        self._target, self._id, self._node, self._allowed = target, job_id, node, allowed
        self.accepted: List[ServerOffer] = []
        """Those that belong to the job. Whoever sees it through vacates them."""
        self.cache = CachePlan()
        """Which of them go over cache drives."""

    def admit(self, job: Job) -> List[ServerPlan]:
        """Say for each server whether it is taken. Those that are belong to this job from now on."""
        plans: List[ServerPlan] = []
        warnings: Dict[str, Tuple[str, ...]] = {}
        for offer in job.servers:
            try:
                warnings[offer.name] = self._admit_one(offer, is_alone=len(job.servers) == 1)
            except AnvilDrError as error:
                plans.append(self._refuse(offer, error))
            else:
                self.accepted.append(offer)
        try:
            self.cache = caching.plan(self._target, self.accepted)
            for server, said in self._promise().items():
                plans.append(ServerPlan(server, None, warnings[server] + said))
        except AnvilDrError as error:
            # SPEC section 4: what does not fit as a whole is refused as a whole.
            for offer in self.accepted:
                self._target.vacate(offer.name, self._id)
                plans.append(self._refuse(offer, error))
            self.accepted.clear()
        return plans

    def _admit_one(self, offer: ServerOffer, *, is_alone: bool) -> Tuple[str, ...]:
        """Make it this job's, if nothing speaks against that; warnings."""
        announcement.check_server(offer)
        warnings = admission.check_server(self._target, offer, self._allowed, self.accepted)
        self._target.occupy(offer.name, self._id)
        try:
            if self._target.state.pending(offer.name):
                # What was begun is about to be finished: not under a server that somebody runs, nor over its variables.
                admission.check_images_free(self._target, cycle.images_of(self._target.store, offer.name))
            admission.claim_names(self._target, offer)
            publish.publish_what_waits(self._target, offer.name)
            if not is_alone:
                self._try_alone(offer)
        except BaseException:  # also what nobody foresaw, or it would be busy until the next start
            self._target.vacate(offer.name, self._id)
            raise
        return warnings

    def _try_alone(self, offer: ServerOffer) -> None:
        """Plan it by itself, so that what is wrong with one server does not refuse the others."""
        with self._target.names:
            cached = caching.plan(self._target, [offer]).servers
            admission.plan_servers(self._target, self._id, [offer], cached)

    def _promise(self) -> Dict[str, Tuple[str, ...]]:
        """Keep room for them; warnings of each."""
        if not self.accepted:
            return {}
        with self._target.names:
            plans = admission.plan_servers(self._target, self._id, self.accepted, self.cache.servers)
            for server, plan in plans.items():
                self._target.promise(self._id, server, space.taken(plan.demands, plan.allocations))
        return {server: plan.warnings for server, plan in plans.items()}

    def _refuse(self, offer: ServerOffer, error: AnvilDrError) -> ServerPlan:
        log.warning("server refused job=%s server=%r code=%s error=%s", self._id, offer.name, error.code, error)
        if error.code in ("ServerActivated", "StoreFull", "ImageInUse", "Store", "State", "Definition"):
            now = self._target.now()
            self._target.state.job_finished(JobRecord(self._id, offer.name, self._node, "failed", now, now, str(error)))
        return ServerPlan(offer.name, Refusal(error.code, str(error)))
