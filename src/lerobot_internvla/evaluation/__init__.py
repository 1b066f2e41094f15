"""Looking before the robot moves: open-loop error of any LeRobot policy, and what will fail on a robot.

``loading``    any LeRobot policy with its processors, behind one small value
``joints``     names and units of a dataset's actions
``scores``     sums of errors per horizon step and joint
``open_loop``  predicted chunks against demonstrations, beside two baselines
``plots``      pictures of both
``page``       headings, sentences, tables and pictures -> Markdown and self-contained HTML
``report``     the one-page report, its pictures and its JSON
``success_table``  results of lerobot-eval on many tasks -> one table
``readiness``  versions, plugin, checkpoint, cameras, joints, rate, latency, memory (internvla-check)

Command lines: internvla-openloop, internvla-check. More: docs/evaluation.md.
"""
