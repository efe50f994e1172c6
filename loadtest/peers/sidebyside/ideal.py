"""The ideal: one central queue, first come first served, that knows every slot and takes the fastest free one."""

import heapq


def central_queue(requests, workers):
    """Simulated on these requests, each (arrival, work), in the order of their arrival; workers have `slots` and
    `slowness`. Gives (wait, total) for each.

    >>> from types import SimpleNamespace as Worker
    >>> central_queue([(0, 10), (1, 10), (2, 10)], [Worker(slots=1, slowness=1), Worker(slots=1, slowness=2)])
    [(0, 10), (0, 20), (8, 18)]
    """
    free = [w.slowness for w in workers for _ in range(w.slots)]
    heapq.heapify(free)
    # (when it ends, on a slot how slow)
    busy, outcome = [], []
    for arrival, work in requests:
        while busy and busy[0][0] <= arrival:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            begins, slowness = arrival, heapq.heappop(free)
        else:
            # Who came first began first, so the next slot to come free is this one's.
            begins, slowness = heapq.heappop(busy)
        ends = begins + work * slowness
        heapq.heappush(busy, (ends, slowness))
        outcome.append((begins - arrival, ends - arrival))
    return outcome
