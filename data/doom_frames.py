"""Plays a scenario of ViZDoom and writes its frames to standard output: a program of its own.

The simulator leaves files in its working folder, so it runs in a temporary one. Nothing of this package is imported.

Shapes: n frames, H W screen.
"""

import os
import sys

import numpy as np
import vizdoom as vd

PLACE = (vd.GameVariable.POSITION_X, vd.GameVariable.POSITION_Y, vd.GameVariable.ANGLE)
RECORD = np.dtype([("episode", "<i4"), ("place", "<f4", len(PLACE)), ("screen", "u1", (120, 160, 3))])


def main(scenario: str, seed: int, skip: int) -> None:
    """Take the actions (n,) uint8 of standard input, each for `skip` tics; write a `RECORD` of the screen before each.

    When an episode is over, a new one begins: an action that ends an episode is the last one of it.
    """
    game = vd.DoomGame()
    game.load_config(os.path.join(vd.scenarios_path, f"{scenario}.cfg"))
    game.set_window_visible(False)
    game.set_mode(vd.Mode.PLAYER)
    game.set_screen_format(vd.ScreenFormat.RGB24)
    game.set_screen_resolution(vd.ScreenResolution.RES_160X120)
    for hide in (game.set_render_weapon, game.set_render_hud, game.set_render_crosshair):
        hide(False)
    game.set_available_game_variables(list(PLACE))
    game.set_seed(seed)
    game.init()
    buttons = np.eye(game.get_available_buttons_size(), dtype=int).tolist()
    record, episode = np.zeros((), RECORD), 0
    for action in sys.stdin.buffer.read():
        if game.is_episode_finished():
            game.new_episode()
            episode += 1
        state = game.get_state()  # there is none once an episode is over
        record["episode"], record["place"], record["screen"] = episode, state.game_variables, state.screen_buffer
        sys.stdout.buffer.write(record.tobytes())
        game.make_action(buttons[action], skip)
    game.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
