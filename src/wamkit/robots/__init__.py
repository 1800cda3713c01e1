"""Robots that are driven and recorded: anything with LeRobot's `get_observation` and `send_action`.

* `base`: what is asked of a robot and of what leads it, and how its dictionaries become vectors and images.
* `record`: the loop that records episodes, which a key keeps, repeats or drops.
* `leaders`: keyboard and gamepad; any object with `get_action` leads too, such as LeRobot's teleoperators.
* `keys`: keys of a terminal, as they are typed.
"""
