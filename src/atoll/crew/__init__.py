"""Who runs the processes of a run and how they talk: the wire, and islands on this machine.

`wire` is the protocol between a pilot and its islands, `local` starts islands on this machine by
way of `preload`, the process that has imported the heavy libraries once and forks. Nothing here
knows what an island computes or what a message means: that is `atoll.training`. No torch.
"""
