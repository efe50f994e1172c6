"""One central queue, first come first served, that knows every slot: the ideal, which takes the fastest free one, and
what any other rule of choosing among the free ones comes to."""

import heapq
import random


def fastest(worker, _outstanding):
    """The ideal's rule."""
    return worker.slowness


def fewest_outstanding(_worker, outstanding):
    """The rule of LEAST_OUTSTANDING_REQUESTS, one copy at each worker."""
    return outstanding


def central_queue(requests, workers, rule=fastest):
    """Simulated on these requests, each (arrival, work), in the order of their arrival; workers have `slots` and
    `slowness`. Each goes to a worker with a free slot of which `rule` says least, any of several. Gives (wait, total)
    for each.

    >>> from types import SimpleNamespace as Worker
    >>> workers = [Worker(slots=1, slowness=2), Worker(slots=2, slowness=1)]
    >>> central_queue([(0, 10), (1, 10), (2, 10), (3, 10)], workers)
    [(0, 10), (0, 10), (0, 20), (7, 17)]
    >>> sorted(central_queue([(0, 10), (1, 10)], workers, fewest_outstanding))
    [(0, 10), (0, 20)]
    """
    draws = random.Random(0)
    outstanding = [0] * len(workers)
    # (when it ends, at which worker)
    busy, outcome = [], []

    def finish():
        end, worker = heapq.heappop(busy)
        outstanding[worker] -= 1
        return end

    for arrival, work in requests:
        while busy and busy[0][0] <= arrival:
            finish()
        begins = arrival
        if all(n == w.slots for n, w in zip(outstanding, workers)):
            # Who came first began first, so the next slot to come free is this one's.
            begins = finish()
        free = [(rule(w, outstanding[at]), draws.random(), at)
                for at, w in enumerate(workers) if outstanding[at] < w.slots]
        _, _, at = min(free)
        outstanding[at] += 1
        ends = begins + work * workers[at].slowness
        heapq.heappush(busy, (ends, at))
        outcome.append((begins - arrival, ends - arrival))
    return outcome
