"""Who runs the processes of a run and how they talk: the wire, islands here and on a cluster.

`wire` is the protocol between a pilot and its islands, `local` starts islands on this machine by
way of `preload`, the process that has imported the heavy libraries once and forks; `ray` has that
done on the nodes of a Ray cluster. Nothing here knows what an island computes or what a message
means: that is `atoll.training`. No torch.
"""
